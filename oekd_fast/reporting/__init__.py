"""Parts of the report: what finished runs predict, how sure they are, where they look; pictures and the page.

Nothing here trains, and importing the parts does not import matplotlib.
"""
