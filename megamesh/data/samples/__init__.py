"""Documents of indexed files → samples → batches: splits, packing, blending, order."""
