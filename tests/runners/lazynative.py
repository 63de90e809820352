"""As some extension modules do: importing it starts a thread that Python does not know. The name of that ends within a character."""

import ctypes

_libc = ctypes.CDLL(None)
_thread = ctypes.c_ulong()
_libc.pthread_create(ctypes.byref(_thread), None, _libc.pause, None)
_libc.pthread_setname_np(_thread, "приложение".encode()[:15])
