"""The homes of SuperLink, gateway and SuperNodes on this machine: their sizes, and cleaning up."""
