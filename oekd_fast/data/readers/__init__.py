"""Readers: from files or a hub to splits.

Each reader (`arrays`, `digits`, `hub`, `image_folder`, `parquet`, `saved_to_disk`) takes `ReadOptions` and returns
`SourceSplits`. Tables share `columns`, which chooses the image and the label column, `labels` and `cells`.
`table` and `encoded` hold the code that readers of tables and of encoded images share, `formats` opens and `decode`
decodes one image, and `reading` has the options and the import of optional packages. `split_names` knows the usual
names of splits, `folder_scan` and `folder_layout` the folders of images, and `files` and `npy` open only what is safe.
"""
