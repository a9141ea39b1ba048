"""Acceptance: does each claim of the papers hold in this implementation?"""
