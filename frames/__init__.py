"""From files to arrays: what a frame, a class and a label value are; finding, reading, checking, caching them."""
