"""The report of a result as one HTML page and as Markdown, made from the files of its folder."""
