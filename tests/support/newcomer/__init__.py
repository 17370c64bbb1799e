"""What a newcomer might add: tests/unit/test_where_a_newcomer_adds.py copies each module into its package."""
