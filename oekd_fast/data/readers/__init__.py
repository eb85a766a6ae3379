"""Readers: from files or a hub to splits.

Each reader (`arrays`, `digits`, `hub`, `image_folder`, `parquet`, `saved_to_disk`) takes `ReadOptions` and returns
`SourceSplits`. Tables share `columns`, which chooses the image and the label column, `labels` and `cells`.
`table` and `encoded` hold the code that readers of tables and of encoded images share, `decode` turns one encoded
image into pixels, and `reading` has the options and the import of optional packages.
"""
