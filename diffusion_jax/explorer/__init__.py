"""The explorer of a backward process in the browser: its page, and the page to mail."""
