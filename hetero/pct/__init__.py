"""Positive-congruent training: a new classifier that does not break what the old one got right.

    metrics.py   error, negative and positive flips of one classifier against another
    methods/     losses that hold a new classifier to the old one: one module, one method
    train.py     classifiers on any backbone, and ensembles of them

A classifier is a bundle of role "classifier": its rows are logits, and its space is the list of its
classes. Its pictures are a closed set, split by picture: see `hetero.data.Images`.

Papers: Yan et al., "Positive-Congruent Training: Towards Regression-Free Model Updates", CVPR 2021,
    arXiv:2011.09161; Zhao et al., "ELODI: Ensemble Logit Difference Inhibition for
    Positive-Congruent Training", 2022, arXiv:2205.06265.
"""
