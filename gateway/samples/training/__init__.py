"""Examples to train and to judge a small model with: a document and a schema, and the record that is right.

Most documents are invented: of families in `data/*.toml`, with facts from `faker`. See docs/training-data.md.
"""
