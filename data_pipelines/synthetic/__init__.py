"""Synthetic pedestrians: the data set that the library renders for itself."""

from data_pipelines.synthetic.builder import Synthetic as Synthetic
