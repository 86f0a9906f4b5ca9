"""How two machines meet, trust and talk: floor 0 of the house.

Holds the wire protocol (VTP), pairing, certificates, links and discovery.
Never imports vramancer_cli, commands or torch.
"""
