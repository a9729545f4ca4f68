"""Roles of parameters: which ones a network has, and rules for module types of your own."""

from supple.network.find_roles import Kind, Role, describe, find_roles, register

__all__ = ["Kind", "Role", "describe", "find_roles", "register"]
