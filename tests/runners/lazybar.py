"""As some progress bars do: importing it starts a thread."""

import threading
import time

threading.Thread(target=time.sleep, args=(3600,), daemon=True, name="a bar").start()
