"""As some progress bars do: whoever imports it has a thread."""

import threading
import time

threading.Thread(target=time.sleep, args=(3600,), daemon=True, name="a bar").start()
