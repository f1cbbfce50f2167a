"""`coe-edge bench`: what members, thread plans and ways to send examples cost on this machine, measured."""
