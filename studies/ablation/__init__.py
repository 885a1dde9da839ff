"""The ablations of the SDST paper, trained again on the shapes world: variants, runs, tables with p-values.

On the way of the data this stands behind training: ``paper`` (what is printed), ``variants`` (what each row changes),
``run`` (features, training, prediction, scores), ``inference`` (is a difference one of the recipes), ``report`` (the
table, JSON, plot) and ``offsets`` (where deformable attention looks).
"""
