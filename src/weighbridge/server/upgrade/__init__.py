"""A new process in an old one's place: the listening socket is handed over, and no connection refused"""
