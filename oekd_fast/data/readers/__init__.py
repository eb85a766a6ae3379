"""Readers: from files or a hub to splits.

Each reader (`arrays`, `digits`, `hub`, `image_folder`, `parquet`) takes `ReadOptions` and returns `SourceSplits`.
`table` and `encoded` hold the code that readers of tables and of encoded images share, `decode` turns one encoded
image into pixels, and `reading` has the options and the import of optional packages.
"""
