"""The job database: tables, transactions, and every change of a job."""
