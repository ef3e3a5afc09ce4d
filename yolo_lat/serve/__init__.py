"""Detection over HTTP: one exported model, requests gathered into batches; needs neither torch nor Ultralytics.

A request passes through `app` (routes), `uploads` (its bytes, limited), `pictures` (limited again, decoded), `batcher`
(one thread that runs the network, `detector`) and `answers` (JSON or a picture); `server` binds the port.
"""

from __future__ import annotations
