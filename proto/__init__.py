"""The schemas of the wire (murmurate/*.proto) and the committed code made from them; tests/test_proto.py says how."""
