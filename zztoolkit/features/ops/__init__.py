"Operations on columns"
