"""The ablations of the SDST paper and the claims of the SCADA paper, on the shapes world: runs, tables with p-values.

Modules, in the order of the data: ``paper`` (the printed tables), ``variants`` (the recipe changes of each row),
``run`` (features, training, prediction, scores), ``inference`` (tests whether two recipes differ), ``report`` (table,
JSON, plot), ``offsets`` (where deformable attention reads) and ``charts`` (what both plots share).
"""
