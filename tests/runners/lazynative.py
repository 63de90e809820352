"""As some extension modules do: whoever imports it has a thread that Python knows nothing of."""

import ctypes

_libc = ctypes.CDLL(None)
_libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, _libc.pause, None)
