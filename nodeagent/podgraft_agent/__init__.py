"""The node agent: what its NodePatch asks for is done to the processes of this node, one engine child each."""
