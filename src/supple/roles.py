"""Roles of parameters: which ones a network has, and rules for module types of your own."""

from supple.network.find_roles import describe, find_roles
from supple.network.role_rules import register
from supple.network.roles import Kind, Overrides, Role

__all__ = ["Kind", "Overrides", "Role", "describe", "find_roles", "register"]
