"""The experiments of the two documents that this project comes from, on models that are at hand.

=====================  ==========================================================================
``published``          what the documents report
``workplace``          prepares the recipes' models once for all experiments; quick or in full
``measuring``          variants of a model, as measured
``section``            what an experiment hands over: tables, pictures, claims with their evidence
``drawing``            curves
``classification``, …  one module an experiment, or two where they differ in the model only
``page``               the document, out of the sections and what ``discussion`` says to each
=====================  ==========================================================================

An experiment is a function from a :class:`~.workplace.Workplace` to a :class:`~.section.Section`,
registered in ``__main__``. Verdicts are computed from figures; what is written by hand are the
reasons.
"""
