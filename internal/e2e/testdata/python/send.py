"""Sends COUNT events with python3-fluent-logger and fails if any is refused."""
import sys

from fluent import sender

host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
nanosecond = len(sys.argv) > 4 and sys.argv[4] == "nanosecond"
logger = sender.FluentSender("py", host=host, port=port, nanosecond_precision=nanosecond)
for n in range(count):
    if not logger.emit("events", {"n": n, "text": "日本 %d" % n, "nested": {"a": [1, 2.5, None, True]}}):
        sys.exit("event %d: %s" % (n, logger.last_error))
logger.close()
