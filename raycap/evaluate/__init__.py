"""From a checkpoint's captions to figures that can be shown: results.json, table, curves, one HTML report.

`results` keeps the rows, `bootstrap` says how sure a difference is, `table` prints them, `plots` draws them, `report`
puts all of it on one page. Nothing in this room trains, and nothing in it knows Ray.
"""
