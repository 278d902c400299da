"""What the router reads of requests and answers; all else passes unread."""
