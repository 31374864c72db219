"""Chat models as steps: the client, streamed replies, tools and plans."""
