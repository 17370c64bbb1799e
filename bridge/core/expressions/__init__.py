"""The expression language: `$event.used / $event.limit >= 0.9`, and the templates people read.

`expression.py` compiles a text, `template.py` a message. Apart from the planner, which asks for compiled ones and
knows nothing of tokens, grammar, or the engine's limits. docs/expressions.md says what an author may write.
"""
