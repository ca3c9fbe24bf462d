"""The smallest graph of the bundle's shape, to see an engine at work without a bundle (hop 4)."""

from __future__ import annotations

import base64

SIDE = 8

# ONNX, opset 18: image uint8 [N, 8, 8, 1] -> map = its values, score = their maximum, reconstruction = image.
GRAPH = base64.b64decode(
    "CAk6swIKGwoFaW1hZ2USAWYiBENhc3QqCQoCdG8YAaABAgoUCgFmCgFjEgNtYXAiB1NxdWVlemUKKwoDbWFwCgFwEgVzY29yZSIJ"
    "UmVkdWNlTWF4Kg8KCGtlZXBkaW1zGACgAQIKIQoFaW1hZ2USDnJlY29uc3RydWN0aW9uIghJZGVudGl0eRIBZyoRCAEQB0IBY0oI"
    "AwAAAAAAAAAqGQgCEAdCAXBKEAEAAAAAAAAAAgAAAAAAAABaIAoFaW1hZ2USFwoVCAISEQoDEgFOCgIICAoCCAgKAggBYhQKBXNj"
    "b3JlEgsKCQgBEgUKAxIBTmIaCgNtYXASEwoRCAESDQoDEgFOCgIICAoCCAhiKQoOcmVjb25zdHJ1Y3Rpb24SFwoVCAISEQoDEgFO"
    "CgIICAoCCAgKAggBQgQKABAS"
)
