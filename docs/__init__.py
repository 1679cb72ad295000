"""Pages to read beside the papers, made from the method files: python docs/build.py"""
