"""Hooks: functions of the user's that the trainer calls, and the built-in ones."""
