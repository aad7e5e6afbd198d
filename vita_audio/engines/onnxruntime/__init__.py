"""ONNX Runtime engines: the CPU default. Nothing else imports ONNX Runtime, so that its telemetry is off everywhere.

From 1.32 on, `import onnxruntime` writes a device id below the home folder, and seconds later the process asks for a
telemetry host. Only this variable, set before the import, prevents both: `disable_telemetry_events` comes too late.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
