"""Streams that another gateway began: their logs in Redis, read on here, and continued where that gateway is gone"""
