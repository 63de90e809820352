"""The only code that touches tasks, scopes and channels: it carries out effects and reports inputs."""
