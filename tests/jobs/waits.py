"""Say that it is up, then wait for the end, politely or (--stubborn) not."""

import signal
import sys
import time

if "--stubborn" in sys.argv:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
print("up", flush=True)
time.sleep(120)
