"""The host of a context on another machine: `SshHost` starts a guardian there, which starts the context process and ends it."""
