"""The console: pages, and an API for the same actions, on the admin server. Server-rendered; nothing of it is imported
before a page is asked for, and nothing of it runs while nobody looks.
"""
