"""Exact values and derivative rules, one file a family; kernels validate nothing."""
