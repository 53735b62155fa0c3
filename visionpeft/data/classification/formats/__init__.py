"""How one file becomes a picture.

- ``intensity.py``  values of more than 8 bits become grey
- ``dicom.py``, ``nifti.py``, ``ordinary.py``  one kind of file each
- ``files.py``  the table of them, chosen by what a file is, and the reader of a folder's files
"""
