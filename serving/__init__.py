"""The gateway: a picture comes in over HTTP, boxes go out, and every answer is accounted for."""
