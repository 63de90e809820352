"""The parent of context processes: their births and deaths, what they write, and what stands ready between incarnations."""
