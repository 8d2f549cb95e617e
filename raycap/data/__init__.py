"""Data: importers, cleaning, subsets, the prepared data set on disk, frozen features. No torch, no Ray.

The way through: `detect.import_dataset` (or `scenes.dataset.draw_scenes` before it) gives records and an
`InputReport`; `prepare.prepare` checks, cuts and writes them; `dataset.PreparedDataset` reads them.
"""
