"""Tables of a results page."""


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown, a line each, and an empty one."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]
