"""Facts about the images of a data set as they are stored, before they are resized or split.

`inspect_splits` decodes every image once and counts sizes, modes, formats and classes; `find_duplicates` compares the
images of all splits by their pixels.
"""

from oekd_fast.data.inspection.duplicates import Duplicates, find_duplicates
from oekd_fast.data.inspection.facts import ImageFacts, SplitFacts, inspect_splits

__all__ = ["Duplicates", "ImageFacts", "SplitFacts", "find_duplicates", "inspect_splits"]
