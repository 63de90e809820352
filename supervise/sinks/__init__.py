"""Sinks: functions and objects that receive events. Each has its own file, which is imported only when used."""
