"""The ledger: tables, engine, queries: all the SQL there is. It never meets `clouds`."""
