"""As some extension modules do: importing it starts a thread that Python does not know."""

import ctypes

_libc = ctypes.CDLL(None)
_libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, _libc.pause, None)
